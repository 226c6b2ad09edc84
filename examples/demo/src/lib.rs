//! The main job in one command: simulated SGLang workers, real agents, the router, a real trace.
