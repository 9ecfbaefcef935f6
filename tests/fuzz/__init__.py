"""Coverage-guided fuzzing of the readers; CONTRIBUTING.md says how to run it.

``readers.py`` says what must hold of any bytes, ``seeds.py`` makes the bytes to begin with, and
``fuzz.py`` runs atheris, which only it needs. What was found is a test elsewhere.
"""
