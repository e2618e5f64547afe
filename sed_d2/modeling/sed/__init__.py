"""SED: cost map, gradual fusion decoder, category early rejection."""
