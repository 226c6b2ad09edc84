//! Espalier's data plane: decode, key, route, forward, feed back.
