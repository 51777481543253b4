"""Two implementations of `pipeline.engines.base.Engine`: `local` (processes of this machine) and `ray` (a cluster)."""
