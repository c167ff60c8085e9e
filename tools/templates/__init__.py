"""Makes the templates that ship with the package, from traces of several sizes."""
