// A sparse autoencoder from a model's own activations: trained, saved, read back, looked through and steered with.
//
//     example_dictionaries MODEL.gguf [FOLDER]
//
// It sees the beginnings of sentences that come with the library, a few thousand tokens several times: enough to show how
// it is done. With FOLDER, a dictionary of any format that is read, nothing is trained.

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>

#include <torch/types.h>

#include "introspect/activations/activation_stream.h"
#include "introspect/hooks/hook_registry.h"
#include "introspect/models/generate.h"
#include "introspect/models/model.h"
#include "introspect/sae/files.h"
#include "introspect/sae/splice.h"
#include "introspect/sae/train.h"
#include "introspect/steering/train.h"

using namespace introspect;

namespace {

/// Batches of the residual stream after a block, mixed over a buffer; the texts begin again at their end.
activations::ActivationStream stream_of(const std::shared_ptr<const models::Model>& model,
                                        const std::string& hook_name) {
  auto packing = activations::pack_options(*model, /*context=*/64);
  packing.repeat = true;
  activations::ModelActivationsOptions options{.max_norm_multiple = 10};  // attention sinks are no text
  if (packing.bos) options.exclude_tokens = {*packing.bos};
  const auto documents = activations::Documents::of_texts(steering::load_suffixes(), model);
  return {activations::model_activations({model}, {documents, packing}, {{hook_name}}, options),
          {.batch_rows = 192, .buffer_rows = 1536}};
}

sae::Dictionary train(const std::shared_ptr<const models::Model>& model, const std::string& hook_name) {
  constexpr int64_t kSteps = 40;
  auto stream = stream_of(model, hook_name);
  sae::TrainerOptions options{.objective = sae::Objective::topk, .d_sae = 768, .k = 16};
  options.input_norm = sae::InputNorm::scale;
  options.b_dec_start = sae::BiasStart::mean;
  options.lr = 1e-3;
  options.dead_window = 20;
  sae::DictionaryOrigin origin;
  origin.model_name = model->cfg().model_name;
  origin.model_hash = model->hash();
  std::vector<sae::Trainer> trainers;
  trainers.push_back(sae::make_trainer(stream, options, {{hook_name}}, {}, origin));
  sae::TrainOptions training{.steps = kSteps, .held_out_rows = 256, .evaluate_every = 20};
  training.on_record = [](const sae::TrainingRecord& record) {
    if (record.held_out.empty()) return;
    std::printf("step %3lld: explained variance of held-out tokens %.3f\n",
                static_cast<long long>(record.step), record.held_out[0].at("explained_variance"));
  };
  return sae::train_dictionaries(stream, std::move(trainers), training).dictionaries().front();
}

std::string generated(const models::Model& model, const std::vector<int64_t>& prompt,
                      const hooks::HookRegistry* hooks) {
  models::GenerateOptions options{.max_new_tokens = 16};
  options.hooks = hooks;
  return model.tokenizer().decode(models::generate(model, {prompt}, options).front());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: example_dictionaries MODEL [FOLDER]\n";
    return 2;
  }
  try {
    const auto model = models::Model::load(argv[1]);
    const auto layer = model->cfg().n_layers / 3;
    const auto folder = std::filesystem::temp_directory_path() / "introspect-example-dictionary";
    if (argc < 3)
      sae::save_dictionary(train(model, hooks::hook_name({hooks::Point::kResidPost, layer})), folder);
    const auto dictionary = sae::load_dictionary(argc < 3 ? folder : argv[2]);
    const auto where =
        sae::check_model(dictionary, *model);  // throws if it is of another model, layer or width
    for (const auto& warning : where.warnings) std::cout << "beware: " << warning << '\n';

    // Encode: the features of the last token, and of no other.
    const auto prompt = model->tokenizer().encode("The weather today is", /*add_special_tokens=*/true);
    torch::Tensor last_1D;
    auto reading = model->make_hooks();
    reading.add(hooks::hook_name(where.input), [&](const torch::Tensor& x, hooks::Site) {
      last_1D = (x.dim() == 4 ? x.flatten(-2) : x).select(1, -1).clone();
      return std::optional<torch::Tensor>();
    });
    model->forward(torch::tensor(prompt).unsqueeze(0),
                   {.hooks = &reading, .logits_at = models::LogitsAt::kLast});
    const auto f = dictionary.encode_sparse(last_1D);
    const auto [values, places] = f.values.topk(std::min<int64_t>(3, f.values.numel()));
    const auto best = f.indices.index_select(0, places);
    std::printf("%lld features make up the last token:", static_cast<long long>(f.values.numel()));
    for (int64_t i = 0; i < best.numel(); ++i)
      std::printf(" #%lld (%.2f)", static_cast<long long>(best[i].item<int64_t>()), values[i].item<double>());
    const auto error = last_1D - dictionary.decode(f, last_1D);
    std::printf("; they leave %.0f %% of its length\n", 100 * (error.norm() / last_1D.norm()).item<double>());

    // Steer: the strongest feature at four times its strength in every token, what the dictionary leaves out kept as it is.
    const auto feature = best[0].item<int64_t>();
    auto steering = model->make_hooks();
    steering.add(sae::splice(dictionary, {{feature, 0, 4 * values[0].item<double>()}}));
    std::cout << "as it is:             " << generated(*model, prompt, nullptr) << '\n';
    std::cout << "feature #" << feature << " steered: " << generated(*model, prompt, &steering) << '\n';
  } catch (const std::exception& error) {
    std::cerr << "example_dictionaries: " << error.what() << '\n';
    return 1;
  }
}
