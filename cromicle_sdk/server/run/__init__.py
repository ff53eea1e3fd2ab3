"""Running an app: in a thread of this process, or in the foreground."""
