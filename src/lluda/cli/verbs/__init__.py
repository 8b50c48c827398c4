"""One file for each verb of the ``lluda`` command: ``add_arguments`` and ``run``."""
