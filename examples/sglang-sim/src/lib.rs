//! A simulated SGLang server, faithful enough to develop against.
