"""What runs inside the sandbox: the judge, with the tests, and the answer's process. Standard library only."""
