// The host side of residual stages between projections.
#include <tuple>
#include <vector>

#include "residual/host_stages.h"

namespace vqfast {
namespace {

// A thread's way through the stages.
struct Through {
  const ProjectedKernel& kernel;
  const Projected& v;
  float* memory;
  Span here{};

  void begin(Span block) { kernel.begin(v, here = block, memory); }
  void enter(int64_t stage, Problem& p, Axis* axes) const {
    const Latents latents = kernel.enter(v, here, stage, memory);
    p.x = latents.x, p.d_stride = latents.width, p.num_axes = 2;
    axes[0] = {(p.rows + latents.width - 1) / latents.width, latents.step, latents.width * v.stages};
    axes[1] = {latents.width, 1, v.stages};
  }
  void leave(int64_t stage) const { kernel.leave(v, here, stage, memory); }
  void end() const { kernel.end(v, here, memory); }
};

// x (B, C, T), each stage's codebook (K, D), and for each the weight (D, C) and bias of the map into it and the weight
// (C, D) and bias of the map back, all contiguous float32 -> indices (B, T, stages), and where `details`, what each
// stage was given, (B, stages * D, T), and the sum of what came back, as x.
std::tuple<Tensor, Tensor, Tensor> projected_codes(
    const Tensor& x, const std::vector<Tensor>& codebooks, const std::vector<Tensor>& maps, bool unit, bool details) {
  const Kernels kernels = best_kernels();
  const auto numbers = [](const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); };
  const int64_t stages = int64_t(codebooks.size()), k = codebooks[0].size(0), d = codebooks[0].size(1);
  Tensor indices = empty({x.size(0), x.size(2), stages}, ScalarType::Long);
  Tensor latents = empty({details ? x.size(0) : 0, stages * d, x.size(2)}, ScalarType::Float);
  Tensor quantized = empty({details ? x.size(0) : 0, x.size(1), x.size(2)}, ScalarType::Float);
  Projected v{numbers(x), x.size(0), x.size(2), x.size(1), d, stages, unit};
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
      kernels.nearest, Type::f32, v.batch * v.length, d, k, v.channels, books,
      static_cast<int64_t*>(indices.mutable_data_ptr()));
  const int64_t size = kernels.projected.scratch(v, all.block());
  Buffer<float> memory(all.threads() * size);
  all.search([&](int64_t part) { return Through{kernels.projected, v, memory.data() + part * size}; });
  return {std::move(indices), std::move(latents), std::move(quantized)};
}

}  // namespace

void add_projected(const Ops& ops) {
  ops.add<projected_codes>(
      "projected_codes(Tensor x, Tensor[] codebooks, Tensor[] maps, bool unit, bool details)"
      " -> (Tensor, Tensor, Tensor)");
}

}  // namespace vqfast
