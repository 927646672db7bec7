"""A shop of generated products that shows what semantic IDs are and what they are worth: `semid demo`."""
