"""The command line `semid`."""
