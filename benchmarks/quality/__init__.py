"""Parts of `build_quality`: cases, peers, interleaved timing."""
