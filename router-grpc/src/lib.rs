//! Espalier's coordinator: agent sessions, the writer, admin service, discovery, telemetry.
