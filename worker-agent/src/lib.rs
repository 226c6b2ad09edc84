//! Runs beside one SGLang server and reports evictions and load to the routers.
