# `stage.py` names ModelSpec, which stands in `schema.py`, which imports `stage.py`: read here first, both are complete.
from posttrain.recipe import schema as schema
