//! The job list: on disk before it is acted on; a failure always sets a later attempt or an end state.
