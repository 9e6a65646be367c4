"""The commands of `ganlib`, a file a group; `pipelines.cli` puts them together."""
