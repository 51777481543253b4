"""Shard sets to and from a hub or an object store: `push` and `pull`; `hub` is what all packages ask hubs by."""
