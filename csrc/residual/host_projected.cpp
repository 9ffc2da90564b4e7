// The host side of residual stages between projections.
#include <tuple>
#include <vector>

#include "residual/host_stages.h"

namespace vqfast {
namespace {

// A thread's path through the stages (see Stages).
struct ProjectedPath {
  const ProjectedKernel& kernel;
  const ProjectedProblem& v;
  float* memory;
  Span here{};

  void begin(Span block) { kernel.begin(v, here = block, memory); }
  void enter(int64_t stage, NearestProblem& p, Axis* axes) const {
    const Latents latents = kernel.enter(v, here, stage, memory);
    p.x = latents.x, p.d_stride = latents.width, p.num_axes = 2;
    axes[0] = {(p.vectors + latents.width - 1) / latents.width, latents.step, latents.width * v.stages};
    axes[1] = {latents.width, 1, v.stages};
  }
  void leave(int64_t stage) const { kernel.leave(v, here, stage, memory); }
  void end() const { kernel.end(v, here, memory); }
};

// x (B, C, T); codebooks: of each stage, (K, D); maps: of each stage, weight (D, C) and bias (D) of the map into the
// width of its codes, weight (C, D) and bias (C) of the map back; all contiguous float32. unit: see ProjectedProblem ->
// indices int64 (B, T, stages); latents (B, stages * D, T), what each stage codes; quantized, as x, the sum of what is
// mapped back. Without `details`, B of latents and quantized is 0.
std::tuple<Tensor, Tensor, Tensor> projected_codes(
    const Tensor& x, const std::vector<Tensor>& codebooks, const std::vector<Tensor>& maps, bool unit, bool details) {
  const Kernels kernels = best_kernels();
  const auto numbers = [](const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); };
  const int64_t stages = int64_t(codebooks.size()), k = codebooks[0].size(0), d = codebooks[0].size(1);
  Tensor indices = empty({x.size(0), x.size(2), stages}, ScalarType::Long);
  Tensor latents = empty({details ? x.size(0) : 0, stages * d, x.size(2)}, ScalarType::Float);
  Tensor quantized = empty({details ? x.size(0) : 0, x.size(1), x.size(2)}, ScalarType::Float);
  ProjectedProblem v{};
  v.x = numbers(x), v.batch = x.size(0), v.channels = x.size(1), v.length = x.size(2);
  v.d = d, v.stages = stages, v.unit = unit;
  std::vector<const float*> weights, codes;
  for (const Tensor& map : maps) weights.push_back(numbers(map));
  for (const Tensor& book : codebooks) codes.push_back(numbers(book));
  v.maps = weights.data(), v.codes = codes.data();
  v.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  if (details) {
    v.latents = static_cast<float*>(latents.mutable_data_ptr());
    v.quantized = static_cast<float*>(quantized.mutable_data_ptr());
  }
  Buffer<float> unit_codes(unit ? stages * k * d : 0);
  Pointers books(codes.begin(), codes.end());
  for (int64_t stage = 0; unit && stage < stages; ++stage) {
    float* to = unit_codes.data() + stage * k * d;
    kernels.projected.normalize(codes[stage], k, d, to);
    books[stage] = to;
  }
  Stages all(
      kernels.nearest, Precision::f32, v.batch * v.length, d, k, v.channels, books,
      static_cast<int64_t*>(indices.mutable_data_ptr()));
  const int64_t size = kernels.projected.scratch_size(v, all.max_block());
  Buffer<float> memory(all.threads() * size);
  all.search([&](int64_t part) { return ProjectedPath{kernels.projected, v, memory.data() + part * size}; });
  return {std::move(indices), std::move(latents), std::move(quantized)};
}

}  // namespace

void add_projected(const Ops& ops) {
  ops.add<projected_codes>(
      "projected_codes(Tensor x, Tensor[] codebooks, Tensor[] maps, bool unit, bool details)"
      " -> (Tensor, Tensor, Tensor)");
}

}  // namespace vqfast
