"""Network code shared by the blocking and the async side. It does not wait."""
