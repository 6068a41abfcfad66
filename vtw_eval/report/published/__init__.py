"""The numbers that the papers print, as data: ``vtw.yaml`` and ``dyvte.yaml``."""
