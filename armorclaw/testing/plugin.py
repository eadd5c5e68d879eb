"""The pytest plugin: real parts as fixtures. Nothing heavy is imported until a fixture is used."""
