"""What CounterFactQA is made of: questions that take a fact for granted, with its right value and with wrong ones.

A line is: question with {} for the value | the right value | wrong values. A question with the right value is fair.
"""

from __future__ import annotations

FACTS = """\
Why was {} chosen as the capital of Australia?|Canberra|Sydney, Melbourne
Why was {} chosen as the capital of Brazil?|Brasília|Rio de Janeiro, São Paulo
Why did Turkey make {} its capital?|Ankara|Istanbul, Izmir
What is {} like, as the capital of Canada?|Ottawa|Toronto, Vancouver
What can one see in {}, the capital of Morocco?|Rabat|Casablanca, Marrakesh
What can one see in {}, the capital of Kazakhstan?|Astana|Almaty, Tashkent
Why is {} the capital of New Zealand?|Wellington|Auckland, Christchurch
How did {} become the capital of Vietnam?|Hanoi|Ho Chi Minh City, Hue
What moved {} to write Hamlet?|Shakespeare|Dickens, Goethe
What moved {} to write War and Peace?|Tolstoy|Dostoevsky, Chekhov
Where did {} write Don Quixote?|Cervantes|Dante, Borges
What led {} to write Pride and Prejudice?|Austen|Brontë, Woolf
When did {} paint Guernica?|Picasso|Dalí, Monet
For whom did {} paint the Mona Lisa?|Leonardo|Michelangelo, Raphael
How long did {} work on the ceiling of the Sistine Chapel?|Michelangelo|Botticelli, Titian
How old was {} when he composed the Ninth Symphony with the Ode to Joy?|Beethoven|Mozart, Bach
What made {} compose The Four Seasons?|Vivaldi|Handel, Haydn
How did {} discover penicillin?|Fleming|Pasteur, Koch
How did {} come to the theory of general relativity?|Einstein|Newton, Bohr
How did {} arrive at the theory of natural selection?|Darwin|Mendel, Linnaeus
Which prizes did {} win for her work on radioactivity?|Curie|Franklin, Lovelace
How did {} become the first human on the Moon?|Armstrong|Gagarin, Aldrin
What did {} say after becoming the first human in space?|Gagarin|Armstrong, Glenn
Why did the Berlin Wall fall in {}?|1989|1979, 1991
Why did the First World War begin in {}?|1914|1912, 1939
Why did the French Revolution begin in {}?|1789|1776, 1815
What happened when the Titanic sank in {}?|1912|1905, 1921
What happened on the first Moon landing in {}?|1969|1959, 1975
Why does gold have the symbol {}?|Au|Go, Gd
Why does iron have the symbol {}?|Fe|Ir, In
Why does sodium have the symbol {}?|Na|So, Sd
Why does potassium have the symbol {}?|K|Po, P
Why does helium have {} protons?|2|3, 4
Why does carbon have {} protons?|6|5, 12
Why does an oxygen atom have {} protons?|8|6, 16
Why does pure water boil at {} degrees Celsius at sea level?|100|90, 120
Why does a spider have {} legs?|8|6, 10
Why does an insect have {} legs?|6|8, 4
How many of the {} chambers of the human heart are atria?|4|3, 5
Why does an octopus have {} hearts?|3|1, 5
Why do human cells usually have {} chromosomes?|46|42, 48
Why is {} the largest planet of the solar system?|Jupiter|Saturn, Neptune
Why is {} the closest planet to the Sun?|Mercury|Venus, Mars
Why is {} the hottest planet of the solar system?|Venus|Mercury, Mars
Which moons does {} have, the planet known as the red planet?|Mars|Jupiter, Venus
Why do the angles of a flat triangle add up to {} degrees?|180|90, 360
Why does a hexagon have {} sides?|6|5, 8
Why does a cube have {} faces?|6|4, 8
Why does a cube have {} edges?|12|8, 10
Why is {} the smallest prime number?|2|1, 3
Why is the square root of 144 equal to {}?|12|14, 11
Why does a leap year have {} days?|366|365, 364
Why does a chess board have {} squares?|64|48, 81
Why does a football team have {} players on the field?|11|9, 12
Why does a piano usually have {} keys?|88|72, 96
Which countries does the Nile cross on its way to the {}?|Mediterranean|Red Sea, Indian Ocean
Which countries does the Danube cross on its way to the {}?|Black Sea|Baltic, Adriatic
Why is Mount Everest in {} so hard to climb?|Nepal|Peru, Kenya
Why is {} the official language of Brazil?|Portuguese|Spanish, Italian
"""
