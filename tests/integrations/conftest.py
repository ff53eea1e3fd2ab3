"""What is not collected here."""

# These need packages that are in environments of their own: test_packages.py runs them there.
collect_ignore = ["packages"]
