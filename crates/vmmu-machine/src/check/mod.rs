//! The judge: compares every translation that a processor uses with what the specification allows.
