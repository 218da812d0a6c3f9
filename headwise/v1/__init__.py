"""Generated from proto/headwise/v1 by `make stubs`; never edited by hand."""
