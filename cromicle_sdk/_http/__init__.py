"""What the sync and the async side both know of the network, without waiting."""
