//! The table of routes. What is asked most stands first.

use super::Access::{Admin, Key, Open};
use super::Concern::{Abort, Control, Fleet, Named};
use super::Effect::{self, Continues, Flushes, Pauses};
use super::Handling::{CloseSession, Load, Many, OpenSession, Own, Prefix, StoredResponse};
use super::Question::{Each, HealthGenerate, Loads, Metrics, Model, ModelInfo, Models, ServerInfo, Tags};
use super::{Access, Handling, Route};
use crate::decode::RouteKind::{
    Chat, Completions, Generate, Messages, OllamaChat, OllamaGenerate, Responses, Vertex,
};

const fn row(methods: &'static str, path: &'static str, handling: Handling, access: Access) -> Route {
    Route { methods, path, handling, access }
}

/// All routes that are not merely passed on.
pub(crate) static ROUTES: &[Route] = &[
    // Generations.
    row("POST PUT", "/generate", Prefix(Generate), Key),
    row("POST", "/v1/chat/completions", Prefix(Chat), Key),
    row("POST", "/v1/completions", Prefix(Completions), Key),
    row("POST", "/v1/responses", Prefix(Responses), Key),
    row("POST", "/v1/messages", Prefix(Messages), Key),
    row("POST", "/api/chat", Prefix(OllamaChat), Key),
    row("POST", "/api/generate", Prefix(OllamaGenerate), Key),
    row("POST", "/invocations", Prefix(Chat), Key),
    row("POST", "/vertex_generate", Prefix(Vertex), Key),
    // State that one worker has.
    row("GET POST", "/open_session", OpenSession, Key),
    row("GET POST", "/close_session", CloseSession, Key),
    row("GET DELETE", "/v1/responses/{id}", StoredResponse, Key),
    row("POST", "/v1/responses/{id}/cancel", StoredResponse, Key),
    // Work without a prefix worth remembering.
    row("POST PUT", "/encode", Load, Key),
    row("POST PUT", "/classify", Load, Key),
    row("POST", "/v1/classify", Load, Key),
    row("POST", "/v1/embeddings", Load, Key),
    row("POST PUT", "/v1/rerank", Load, Key),
    row("POST", "/v1/score", Load, Key),
    row("POST", "/v1/decisions", Load, Key),
    row("POST", "/v1/systemone", Load, Key),
    row("POST", "/v1/audio/transcriptions", Load, Key),
    row("GET", "/v1/realtime", Load, Key),
    row("POST", "/v1/messages/count_tokens", Load, Key),
    row("POST", "/tokenize", Load, Key),
    row("POST", "/v1/tokenize", Load, Key),
    row("POST", "/detokenize", Load, Key),
    row("POST", "/v1/detokenize", Load, Key),
    row("POST", "/parse_function_call", Load, Key),
    row("POST", "/separate_reasoning", Load, Key),
    row("POST", "/api/show", Load, Key),
    row("GET HEAD", "/", Load, Key),
    row("GET", "/openapi.json", Load, Key),
    // The router's own state.
    row("GET HEAD", "/health", Own, Open),
    row("GET HEAD", "/readiness", Own, Open),
    row("GET HEAD", "/ready", Own, Open),
    row("GET HEAD", "/liveness", Own, Open),
    row("GET HEAD", "/ping", Own, Key),
    // The fleet's.
    row("GET", "/health_generate", Many(Fleet(HealthGenerate)), Open),
    row("GET", "/v1/models", Many(Fleet(Models)), Key),
    row("GET", "/v1/models/{model}", Many(Fleet(Model)), Key),
    row("GET", "/api/tags", Many(Fleet(Tags)), Key),
    row("GET", "/model_info", Many(Fleet(ModelInfo)), Key),
    row("GET", "/get_model_info", Many(Fleet(ModelInfo)), Key),
    row("GET", "/server_info", Many(Fleet(ServerInfo)), Key),
    row("GET", "/get_server_info", Many(Fleet(ServerInfo)), Key),
    row("GET", "/v1/loads", Many(Fleet(Loads)), Key),
    row("GET", "/metrics", Many(Fleet(Metrics)), Open),
    row("GET", "/get_hicache_l3_cache_layout", Many(Fleet(Each)), Key),
    row("GET", "/hicache/storage-backend", Many(Fleet(Each)), Admin),
    row("GET", "/list_external_corpora", Many(Fleet(Each)), Admin),
    row("GET", "/is_scaling_elastic_ep", Many(Fleet(Each)), Admin),
    row("GET", "/remote_instance_transfer_engine_info", Many(Fleet(Each)), Admin),
    row("GET", "/get_remote_instance_transfer_engine_info", Many(Fleet(Each)), Admin),
    // Control of all workers.
    row("POST", "/abort_request", Many(Abort), Admin),
    row("GET POST", "/flush_cache", Many(Control(Flushes)), Admin),
    row("POST", "/pause_generation", Many(Control(Pauses)), Admin),
    row("POST", "/continue_generation", Many(Control(Continues)), Admin),
    row("GET POST", "/start_profile", Many(Control(Effect::None)), Admin),
    row("GET POST", "/stop_profile", Many(Control(Effect::None)), Admin),
    row("GET POST", "/start_expert_distribution_record", Many(Control(Effect::None)), Admin),
    row("GET POST", "/stop_expert_distribution_record", Many(Control(Effect::None)), Admin),
    row("GET POST", "/dump_expert_distribution_record", Many(Control(Effect::None)), Admin),
    row("GET POST", "/configure_logging", Many(Control(Effect::None)), Admin),
    row("GET POST", "/set_trace_level", Many(Control(Effect::None)), Admin),
    row("GET POST", "/freeze_gc", Many(Control(Effect::None)), Admin),
    row("GET POST", "/slow_down", Many(Control(Effect::None)), Admin),
    row("POST PUT", "/set_internal_state", Many(Control(Effect::None)), Admin),
    row("POST", "/load_lora_adapter", Many(Control(Effect::None)), Admin),
    row("POST", "/load_lora_adapter_from_tensors", Many(Control(Effect::None)), Admin),
    row("POST", "/unload_lora_adapter", Many(Control(Effect::None)), Admin),
    row("POST", "/add_external_corpus", Many(Control(Effect::None)), Admin),
    row("POST", "/remove_external_corpus", Many(Control(Effect::None)), Admin),
    row("GET POST", "/release_memory_occupation", Many(Control(Flushes)), Admin),
    row("GET POST", "/resume_memory_occupation", Many(Control(Flushes)), Admin),
    row("POST", "/hicache/storage-backend/clear", Many(Control(Effect::None)), Admin),
    row("PUT DELETE", "/hicache/storage-backend", Many(Control(Effect::None)), Admin),
    row("POST", "/update_weights_from_disk", Many(Control(Flushes)), Admin),
    row("POST", "/update_weights_from_tensor", Many(Control(Flushes)), Admin),
    row("POST", "/update_weights_from_distributed", Many(Control(Flushes)), Admin),
    row("POST", "/update_weights_from_ipc", Many(Control(Flushes)), Admin),
    row("POST", "/begin_weight_update", Many(Control(Effect::None)), Admin),
    row("POST", "/end_weight_update", Many(Control(Flushes)), Admin),
    row("POST", "/update_weight_version", Many(Control(Effect::None)), Admin),
    row("POST", "/destroy_weights_update_group", Many(Control(Effect::None)), Admin),
    row("GET POST", "/get_weights_by_name", Many(Control(Effect::None)), Admin),
    row("GET POST", "/weights_checker", Many(Control(Effect::None)), Admin),
    // Control of one worker: the body is about its own place in a group, its own role, its own size.
    row("POST", "/init_weights_update_group", Many(Named(Effect::None)), Admin),
    row("POST", "/init_weights_send_group_for_remote_instance", Many(Named(Effect::None)), Admin),
    row("POST", "/send_weights_to_remote_instance", Many(Named(Effect::None)), Admin),
    row("POST", "/pd_role_switch", Many(Named(Flushes)), Admin),
    row("POST", "/scale_elastic_ep", Many(Named(Effect::None)), Admin),
];
