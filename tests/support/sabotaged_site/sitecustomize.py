"""Python runs this at its start when the folder is on its path: Llama is then imported with a change."""

import os

from tests.support.sabotage import install

install(os.environ["SABOTAGE"])
