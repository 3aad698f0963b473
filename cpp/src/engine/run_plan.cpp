#include "engine/run_plan.h"

#include <ATen/core/grad_mode.h>

#include "engine/pass.h"

namespace introspect::engine {

void run_plan(const Plan& plan, const Models& models, const OnCaptured& on_captured,
              const Progress& progress) {
  const at::NoGradGuard no_grad;
  int64_t done = 0;
  const int64_t total = plan.summary().token_layers_to_run;
  ResidualBuffers buffers;
  HeldUnits held(static_cast<size_t>(plan.n_layers()));
  for (size_t p = 0; p < plan.passes().size(); ++p) {
    Pass pass(plan, static_cast<int64_t>(p), models, buffers, held);
    on_captured(pass.run([&](int64_t n) { report(progress, "graph", done += n, total); }));
  }
  report(progress, "graph", total, total);
}

}  // namespace introspect::engine
