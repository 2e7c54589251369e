//! A job as chunks: reads one version of a file, hashes it once, never a mix.
