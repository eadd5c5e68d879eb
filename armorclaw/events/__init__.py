"""What happens, as numbered events: written down once, pushed to whoever follows, kept until acknowledged."""
