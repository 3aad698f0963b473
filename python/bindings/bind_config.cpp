#include "bind_config.h"

#include "introspect/models/config_json.h"
#include "value_type.h"

namespace introspect::python {

void bind_config(py::module_& m) {
  using models::Config;
  py::class_<Config> type(m, "Config", "What a decoder is made of; the fields have TransformerLens's names.");
  copy_as_value(type);
  type.def_readonly("model_name", &Config::model_name)
      .def_readonly("original_architecture", &Config::original_architecture)
      .def_readonly("n_layers", &Config::n_layers)
      .def_readonly("d_model", &Config::d_model)
      .def_readonly("n_heads", &Config::n_heads)
      .def_readonly("n_key_value_heads", &Config::n_key_value_heads)
      .def_readonly("d_head", &Config::d_head)
      .def_readonly("d_mlp", &Config::d_mlp)
      .def_readonly("d_vocab", &Config::d_vocab)
      .def_readonly("n_ctx", &Config::n_ctx)
      .def_readonly("act_fn", &Config::act_fn)
      .def_readonly("gated_mlp", &Config::gated_mlp)
      .def_readonly("num_experts", &Config::num_experts)
      .def_readonly("experts_per_token", &Config::experts_per_token)
      .def_readonly("norm_topk_prob", &Config::norm_topk_prob)
      .def_readonly("router_bias", &Config::router_bias)
      .def_readonly("normalization_type", &Config::normalization_type)
      .def_readonly("eps", &Config::eps)
      .def_readonly("norm_weight_offset", &Config::norm_weight_offset)
      .def_readonly("norm_rounds_last", &Config::norm_rounds_last)
      .def_readonly("use_normalization_before_and_after", &Config::use_normalization_before_and_after)
      .def_readonly("use_normalization_after_only", &Config::use_normalization_after_only)
      .def_readonly("use_qk_norm", &Config::use_qk_norm)
      .def_readonly("qk_norm_over_heads", &Config::qk_norm_over_heads)
      .def_readonly("positional_embedding_type", &Config::positional_embedding_type)
      .def_readonly("rotary_dim", &Config::rotary_dim)
      .def_readonly("rotary_base", &Config::rotary_base)
      .def_readonly("rotary_base_local", &Config::rotary_base_local)
      .def_readonly("rotary_in_float32", &Config::rotary_in_float32)
      .def_readonly("window_size", &Config::window_size)
      .def_readonly("attn_types", &Config::attn_types)
      .def_readonly("attn_sinks", &Config::attn_sinks)
      .def_readonly("attn_scale", &Config::attn_scale)
      .def_readonly("attn_scores_soft_cap", &Config::attn_scores_soft_cap)
      .def_readonly("output_logits_soft_cap", &Config::output_logits_soft_cap)
      .def_readonly("embed_scale", &Config::embed_scale)
      .def_readonly("parallel_attn_mlp", &Config::parallel_attn_mlp)
      .def_readonly("qkv_bias", &Config::qkv_bias)
      .def_readonly("attn_out_bias", &Config::attn_out_bias)
      .def_readonly("mlp_bias", &Config::mlp_bias)
      .def_readonly("tie_word_embeddings", &Config::tie_word_embeddings)
      .def_property_readonly("rotary_scaling", [](const Config& c) { return c.rotary_scaling.type; })
      .def("__repr__",
           [](const Config& c) {
             const py::dict fields = py::module_::import("json").attr("loads")(models::to_json(c));
             std::string out = "Config:";
             for (const auto& [name, value] : fields)
               out += "\n  " + name.cast<std::string>() + "=" + py::repr(value).cast<std::string>();
             return out;
           })
      .def("to_json", &models::to_json, "Every field by its name, as a JSON object.")
      .def_static("from_json", &models::config_from_json, py::arg("json"), R"doc(
A Config from such an object; fields that it leaves out have their defaults.

Raises:
    ConfigError: a field that Config does not have, one of another type, or sizes and options that no model has.
)doc")
      .def(py::pickle(&models::to_json, &models::config_from_json));
}

}  // namespace introspect::python
