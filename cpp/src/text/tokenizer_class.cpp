#include "text/tokenizer_class.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "introspect/core/check.h"

namespace introspect::text {
namespace {

// Source: transformers 5.24, models/auto/tokenization_auto.py.

constexpr std::array<std::pair<std::string_view, TokenizerClass>, 8> kClasses = {
    {{"GPT2Tokenizer", TokenizerClass::gpt2},
     {"CodeGenTokenizer", TokenizerClass::gpt2},
     {"GPTNeoXTokenizer", TokenizerClass::gpt_neox},
     {"Qwen2Tokenizer", TokenizerClass::qwen2},
     {"LlamaTokenizer", TokenizerClass::llama},
     {"CodeLlamaTokenizer", TokenizerClass::code_llama},
     {"GemmaTokenizer", TokenizerClass::gemma},
     {"TokenizersBackend", TokenizerClass::backend}}};

/// Classes that build their stages themselves, and that this library does not have. Any other name is `backend`.
constexpr std::string_view kUnknownClasses[] = {"AlbertTokenizer",
                                                "BartTokenizer",
                                                "BarthezTokenizer",
                                                "BartphoTokenizer",
                                                "BertGenerationTokenizer",
                                                "BertJapaneseTokenizer",
                                                "BertTokenizer",
                                                "BertweetTokenizer",
                                                "BigBirdTokenizer",
                                                "BioGptTokenizer",
                                                "BlenderbotSmallTokenizer",
                                                "BlenderbotTokenizer",
                                                "ByT5Tokenizer",
                                                "CLIPTokenizer",
                                                "CTRLTokenizer",
                                                "CamembertTokenizer",
                                                "CanineTokenizer",
                                                "ClvpTokenizer",
                                                "CohereTokenizer",
                                                "CpmAntTokenizer",
                                                "CpmTokenizer",
                                                "DPRContextEncoderTokenizer",
                                                "DPRQuestionEncoderTokenizer",
                                                "DPRReaderTokenizer",
                                                "DebertaTokenizer",
                                                "DebertaV2Tokenizer",
                                                "DiaTokenizer",
                                                "DistilBertTokenizer",
                                                "EsmTokenizer",
                                                "EsmcTokenizer",
                                                "FSMTTokenizer",
                                                "FastSpeech2ConformerTokenizer",
                                                "FlaubertTokenizer",
                                                "FunnelTokenizer",
                                                "GPTNeoXJapaneseTokenizer",
                                                "GPTSw3Tokenizer",
                                                "HerbertTokenizer",
                                                "LasrTokenizer",
                                                "LayoutLMv2Tokenizer",
                                                "LayoutLMv3Tokenizer",
                                                "LayoutXLMTokenizer",
                                                "LukeTokenizer",
                                                "M2M100Tokenizer",
                                                "MBart50Tokenizer",
                                                "MBartTokenizer",
                                                "MLukeTokenizer",
                                                "MPNetTokenizer",
                                                "MarianTokenizer",
                                                "MarkupLMTokenizer",
                                                "MgpstrTokenizer",
                                                "MobileBertTokenizer",
                                                "MyT5Tokenizer",
                                                "NllbTokenizer",
                                                "NougatTokenizer",
                                                "OpenAIGPTTokenizer",
                                                "PLBartTokenizer",
                                                "PegasusTokenizer",
                                                "PerceiverTokenizer",
                                                "PhobertTokenizer",
                                                "Pop2PianoTokenizer",
                                                "ProphetNetTokenizer",
                                                "Qwen3_5Tokenizer",
                                                "ReformerTokenizer",
                                                "RemBertTokenizer",
                                                "RoCBertTokenizer",
                                                "RoFormerTokenizer",
                                                "RobertaTokenizer",
                                                "SeamlessM4TTokenizer",
                                                "Siglip2Tokenizer",
                                                "SiglipTokenizer",
                                                "Speech2TextTokenizer",
                                                "SpeechT5Tokenizer",
                                                "SplinterTokenizer",
                                                "SqueezeBertTokenizer",
                                                "T5Tokenizer",
                                                "TapasTokenizer",
                                                "Tipsv2Tokenizer",
                                                "UdopTokenizer",
                                                "VideoPrismTokenizer",
                                                "VitsTokenizer",
                                                "Wav2Vec2CTCTokenizer",
                                                "WhisperTokenizer",
                                                "XGLMTokenizer",
                                                "XLMRobertaTokenizer",
                                                "XLMTokenizer",
                                                "XLNetTokenizer"};

/// The class of a model type of decoders; types that are not here have none of their own.
constexpr std::pair<std::string_view, TokenizerClass> kModelTypes[] = {
    {"codegen", TokenizerClass::gpt2},
    {"dbrx", TokenizerClass::gpt2},
    {"gpt2", TokenizerClass::gpt2},
    {"gpt_neo", TokenizerClass::gpt2},
    {"gptj", TokenizerClass::gpt2},
    {"opt", TokenizerClass::gpt2},
    {"phi", TokenizerClass::gpt2},
    {"starcoder2", TokenizerClass::gpt2},
    {"falcon_mamba", TokenizerClass::gpt_neox},
    {"gpt_neox", TokenizerClass::gpt_neox},
    {"mamba", TokenizerClass::gpt_neox},
    {"mamba2", TokenizerClass::gpt_neox},
    {"mpt", TokenizerClass::gpt_neox},
    {"olmo", TokenizerClass::gpt_neox},
    {"olmoe", TokenizerClass::gpt_neox},
    {"rwkv", TokenizerClass::gpt_neox},
    {"qwen2", TokenizerClass::qwen2},
    {"qwen2_5_vl", TokenizerClass::qwen2},
    {"qwen2_moe", TokenizerClass::qwen2},
    {"qwen2_vl", TokenizerClass::qwen2},
    {"qwen3", TokenizerClass::qwen2},
    {"qwen3_moe", TokenizerClass::qwen2},
    {"qwen3_next", TokenizerClass::qwen2},
    {"qwen3_vl", TokenizerClass::qwen2},
    {"gemma", TokenizerClass::gemma},
    {"gemma2", TokenizerClass::gemma},
    {"gemma3", TokenizerClass::gemma},
    {"gemma3_text", TokenizerClass::gemma},
    {"gemma3n", TokenizerClass::gemma},
    {"gemma3n_text", TokenizerClass::gemma},
    {"recurrent_gemma", TokenizerClass::gemma},
    {"code_llama", TokenizerClass::code_llama},
    {"glm", TokenizerClass::backend},
    {"glm4", TokenizerClass::backend},
    {"gpt_bigcode", TokenizerClass::backend},
    {"granite", TokenizerClass::backend},
    {"granitemoe", TokenizerClass::backend},
    {"ministral", TokenizerClass::backend},
    {"ministral3", TokenizerClass::backend},
    {"mistral", TokenizerClass::backend},
    {"mistral3", TokenizerClass::backend},
    {"mixtral", TokenizerClass::backend},
    {"nemotron", TokenizerClass::backend},
    {"olmo2", TokenizerClass::backend},
    {"olmo3", TokenizerClass::backend},
    {"persimmon", TokenizerClass::backend},
    {"phi3", TokenizerClass::backend},
    {"phimoe", TokenizerClass::backend},
    {"stablelm", TokenizerClass::backend}};

/// Types whose files are known to name a wrong class: the type's own holds.
constexpr std::string_view kWrongClassInFiles[] = {"qwen2", "phi3", "phimoe", "nemotron"};

std::string without_fast(std::string name) {
  if (name.ends_with("Fast")) name.resize(name.size() - 4);
  return name;
}

/// nullopt: a class this library does not have.
std::optional<TokenizerClass> class_named(const std::string& name) {
  for (const auto& [known, value] : kClasses)
    if (name == known) return value;
  if (std::ranges::find(kUnknownClasses, name) != std::ranges::end(kUnknownClasses)) return std::nullopt;
  return TokenizerClass::backend;
}

TokenizerClass supported(const std::string& name) {
  const auto found = class_named(name);
  check<ConfigError>(found.has_value(), "tokenizer_config.json: 'tokenizer_class' ", name,
                     " builds a tokenizer in a way that this library does not have; where tokenizer.json is "
                     "meant as it is, PreTrainedTokenizerFast says so");
  return *found;
}

}  // namespace

TokenizerClass choose_class(const ClassHints& hints) {
  const auto type =
      std::ranges::find(kModelTypes, hints.model_type, [](const auto& entry) { return entry.first; });
  const bool registered = type != std::ranges::end(kModelTypes);
  const bool wrong_in_files =
      std::ranges::find(kWrongClassInFiles, hints.model_type) != std::ranges::end(kWrongClassInFiles);
  const auto& given = hints.in_tokenizer_config ? hints.in_tokenizer_config : hints.in_config;
  const std::string name = without_fast(given.value_or(""));
  if (hints.has_own_code && !registered) {
    const bool known = std::ranges::any_of(kClasses, [&](const auto& entry) { return name == entry.first; });
    check<ConfigError>(known || name == "PreTrainedTokenizer",
                       "tokenizer_config.json: 'auto_map' asks for Python code of the model's own, which is "
                       "never run");
  }
  if (name == "LlamaTokenizer" && hints.is_byte_level && !wrong_in_files) return TokenizerClass::backend;
  if (!given) return registered ? type->second : TokenizerClass::backend;
  if (!registered) return supported(name);
  if (type->second == TokenizerClass::backend) return TokenizerClass::backend;
  return wrong_in_files ? type->second : supported(name);
}

}  // namespace introspect::text
