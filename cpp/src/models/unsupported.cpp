#include "models/unsupported.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace introspect::models {
namespace {

struct Kind {
  const char* what;
  std::initializer_list<std::string_view> names;  // in lower case; the first kind with a name inside decides
};

const Kind kKinds[] = {
    {"a mixture of experts, which this library does not run",
     {"moe", "deepseek", "dbrx", "llama4", "arctic", "jetmoe", "grok", "switchtransformer", "minimax",
      "kimi"}},
    {"a recurrent or state-space model; this library runs transformer decoders",
     {"mamba", "rwkv", "jamba", "zamba", "recurrentgemma", "recurrent_gemma", "falconh1", "falcon_h1",
      "falcon-h1", "bamba", "xlstm", "lfm2", "retnet", "nemotronh", "nemotron_h"}},
    {"a model of an encoder and a decoder; this library runs decoders alone",
     {"t5", "bart", "pegasus", "marian", "whisper", "m2m", "nllb", "blenderbot", "prophetnet"}},
    {"an encoder, which predicts no next token; this library runs decoders",
     {"bert", "electra", "deberta", "xlnet", "mpnet", "ernie", "longformer", "bigbird", "funnel", "nomic",
      "vitfor", "clip", "siglip", "dinov2", "wav2vec", "hubert"}},
    {"a model of images or sounds and text, of which this library runs only Gemma 3's text part",
     {"llava", "vl", "vision", "idefics", "paligemma", "blip", "mllama", "pixtral", "audio", "omni",
      "conditionalgeneration"}},
    {"a model that ranks or labels texts, without a head for the next token",
     {"sequenceclassification", "tokenclassification", "questionanswering", "rewardmodel"}},
    {"a decoder of another family, which this library does not run",
     {"olmo",        "opt",      "gpt_neo",  "gptneo",  "gptj",      "gpt-j",     "falcon",
      "bloom",       "mpt",      "stablelm", "cohere",  "command",   "starcoder", "gptbigcode",
      "gpt_bigcode", "internlm", "chatglm",  "glm",     "baichuan",  "granite",   "smollm3",
      "gemma",       "phi",      "qwen",     "codegen", "xglm",      "nemotron",  "persimmon",
      "exaone",      "plamo",    "minicpm",  "biogpt",  "ministral", "apertus",   "hunyuan",
      "openelm",     "orion",    "refact",   "solar",   "openai",    "ctrl"}},
};

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

}  // namespace

std::string what_is(std::string_view architecture, std::string_view model_type) {
  const auto name = lower(architecture.substr(0, 200)), type = lower(model_type.substr(0, 200));
  for (const auto& [what, names] : kKinds)
    for (const auto word : names)
      if (name.find(word) != std::string::npos || type.find(word) != std::string::npos) return what;
  return {};
}

}  // namespace introspect::models
