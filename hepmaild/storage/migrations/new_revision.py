# SPDX-License-Identifier: Apache-2.0
"""`python -m hepmaild.storage.migrations.new_revision NUMBER TITLE`: a draft of the next revision.

Compares the tables in `schema` with what the present revisions make of an empty database, and writes the difference to
`versions/`.  Read it, mend it, and add the data it has to move.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from hepmaild.storage import migrate


def main(number: str, title: str) -> None:
    """Write the draft; number: four digits, which become the revision's id."""
    config = Config()
    config.set_main_option("script_location", str(migrate.FOLDER))
    config.set_main_option("file_template", "%%(rev)s_" + re.sub(r"\W+", "_", title.lower()).strip("_"))
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder) / 'empty.db'}")
        with engine.begin() as conn:
            config.attributes["connection"] = conn
            if any(migrate.FOLDER.glob("versions/*.py")):
                migrate.upgrade(conn)
            command.revision(config, title, autogenerate=True, rev_id=number)
        engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
