"""Network code shared by the blocking and the async side."""
