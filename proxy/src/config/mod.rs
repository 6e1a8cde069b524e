//! xDS resources, validated and compiled, and the stores that publish them.
