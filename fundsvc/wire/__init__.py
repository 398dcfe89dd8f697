"""The wire format of events: JSON and MessagePack."""
