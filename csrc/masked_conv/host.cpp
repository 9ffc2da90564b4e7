// The host side of masked convolution.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <optional>
#include <vector>

#include "host/library.h"

namespace vqfast {
namespace {

// The grid of a dense tensor (B, C, H, W), or one that is repeated over positions, (B, C, 1, 1). last: channels last.
// like: a tensor of the full size.
Grid grid(const Tensor& t, const Tensor& like, bool last) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  Grid g{t.mutable_data_ptr(), c * h * w, last ? 1 : h * w, last ? w * c : w, last ? c : 1};
  if (h == 1 && like.size(2) > 1) g.row = 0;
  if (w == 1 && like.size(3) > 1) g.column = 0;
  return g;
}
Grid grid(const std::optional<Tensor>& t, const Tensor& like, bool last) { return t ? grid(*t, like, last) : Grid{}; }

Epilogue epilogue_of(Activation activation) {
  switch (activation) {
    case Activation::none: return Epilogue::none;
    case Activation::relu: return Epilogue::relu;
    case Activation::gate: return Epilogue::gate;
    default: fail("the activation of a masked convolution is none, relu or gate");
  }
}

// A problem with its sizes and tensors. All tensors but x are channels last if the result is.
MaskedConvProblem masked_conv_of(const Tensor& x, const std::optional<Tensor>& extra,
                                 const std::optional<Tensor>& residual, const Tensor& result,
                                 const std::optional<Tensor>& kept) {
  const bool codes = x.scalar_type() == ScalarType::Long;
  const bool point = x.size(2) * x.size(3) == 1;
  const bool last = codes || point || (x.stride(1) == 1 && x.size(1) > 1);
  const bool result_last = point || result.size(1) == 1 ? last : result.stride(1) == 1;
  MaskedConvProblem p{};
  p.precision = precision_of(result);
  p.batch = x.size(0), p.in_channels = x.size(1), p.height = x.size(2), p.width = x.size(3);
  if (codes)
    p.codes = static_cast<const int64_t*>(x.const_data_ptr());
  else
    p.x = grid(x, x, last);
  p.extra = grid(extra, x, result_last), p.residual = grid(residual, x, result_last);
  p.result = grid(result, x, result_last), p.kept = grid(kept, x, result_last);
  return p;
}

// Sets the weight (C_out, C_in, kh, kw), of any strides but with contiguous windows (kh, kw), and its taps (see
// `masked_conv`).
void set_weight(MaskedConvProblem& p, const Tensor& weight, const std::vector<int64_t>& taps,
                const std::vector<int64_t>& dy, const std::vector<int64_t>& dx) {
  p.out_channels = weight.size(0);
  for (int64_t n = 0; p.codes && n < p.batch * p.height * p.width; ++n)
    if (p.codes[n] < 0 || p.codes[n] >= weight.size(1))
      throw std::runtime_error(
          "codes hold " + std::to_string(p.codes[n]) + "; want 0 to " + std::to_string(weight.size(1) - 1));
  if (p.codes) p.in_channels = weight.size(1);
  p.weight = weight.mutable_data_ptr();
  p.weight_out_stride = weight.stride(0), p.weight_in_stride = weight.stride(1);
  p.num_taps = int64_t(taps.size()), p.tap = taps.data(), p.dy = dy.data(), p.dx = dx.data();
}

// Plans a problem, and holds the room that this takes.
struct Plan {
  std::vector<ConvProduct> products;
  std::vector<TapMatrix> matrices;
  std::vector<ViewSet> view_sets;
  Plan(MaskedConvProblem& p, const MaskedConvKernel& kernel, int64_t threads)
      : products(4 * p.num_taps), matrices(2 * p.num_taps), view_sets(p.num_taps) {
    p.products = products.data(), p.matrices = matrices.data(), p.view_sets = view_sets.data();
    kernel.plan(p, threads);
  }
};

// Multiplications of a pass.
double multiplications(const MaskedConvProblem& p) {
  return double(p.batch * p.height * p.width) * double(p.num_taps + 1) * double(p.in_channels) * double(p.out_channels);
}

// The convolution of a problem; returns whether it is right (MaskedConvKernel).
bool convolve(MaskedConvProblem p) {
  const MaskedConvKernel& kernel = best_kernels().masked_conv;
  const int64_t threads = threads_for(multiplications(p));
  const Plan plan(p, kernel, threads);
  const int64_t bytes = kernel.scratch_bytes(p);
  Buffer<char> packed(kernel.packed_bytes(p)), scratch(threads * bytes);
  SharedWork packing;
  std::atomic<bool> right = true;
  for_parts(threads, kernel.blocks(p), [&](int64_t part, Span blocks) {
    packing.run(kernel.tiles(p), [&](int64_t tile) {
      if (!kernel.pack(p, {tile, tile + 1}, packed.data())) right = false;
    });
    if (!right || !kernel.forward(p, blocks, packed.data(), scratch.data() + part * bytes)) right = false;
  });
  return right;
}

// The gradients of the weight and the bias; returns whether they are right.
bool compute_weight_gradient(MaskedConvProblem p) {
  const MaskedConvKernel& kernel = best_kernels().masked_conv;
  const int64_t threads = threads_for(multiplications(p));
  const Plan plan(p, kernel, threads);
  const int64_t bytes = kernel.scratch_bytes(p), sums = kernel.packed_bytes(p), parts = kernel.weight_parts(p);
  // Threads divide the positions, as far as there is room for their sums (64 MB), and then the weight.
  const int64_t room = (int64_t{1} << 26) / std::max<int64_t>(1, sums);
  const int64_t shares = std::clamp<int64_t>(std::min(room, kernel.blocks(p)), 1, threads);
  const int64_t slices = (threads + shares - 1) / shares;
  Buffer<char> packed(shares * sums), scratch(threads * bytes);
  SharedWork adding, writing;
  std::atomic<bool> right = true;
  for_parts(threads, threads, [&](int64_t thread, Span) {
    adding.run(shares * slices, [&](int64_t unit) {
      const int64_t share = unit / slices, slice = unit % slices;
      if (!kernel.weight_gradient(p, part_of(kernel.blocks(p), shares, share), part_of(parts, slices, slice),
                             packed.data() + share * sums, scratch.data() + thread * bytes))
        right = false;
    });
    writing.run(threads,
                [&](int64_t n) { kernel.write_gradient(p, part_of(parts, threads, n), shares, packed.data()); });
  });
  return right;
}

// Computes a problem, with the CPU's tiles if they serve, and again without where they were wrong.
void compute(MaskedConvProblem& p, bool (*with)(MaskedConvProblem)) {
  p.tiled = true;
  if (!with(p)) p.tiled = false, with(p);
}

// result = activation(conv(x) + bias + extra) + residual; kept, if given, gets the sums. Entry taps[i] of the weight's
// windows (kh, kw) multiplies x at (dy[i], dx[i]) relative to each position, and other entries count for nothing. x is
// contiguous or channels last, and so are all other tensors alike; int64 x (B, 1, H, W) are codes, that is one-hot
// vectors.
// activation: none, relu or gate.
void masked_conv(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& extra, const std::optional<Tensor>& residual, const Tensor& result,
                 const std::optional<Tensor>& kept, const std::vector<int64_t>& taps, const std::vector<int64_t>& dy,
                 const std::vector<int64_t>& dx, int64_t activation) {
  MaskedConvProblem p = masked_conv_of(x, extra, residual, result, kept);
  set_weight(p, weight, taps, dy, dx);
  p.bias = bias ? bias->mutable_data_ptr() : nullptr;
  p.epilogue = epilogue_of(Activation(activation));
  compute(p, convolve);
}

// An uninitialised tensor of some channels on the grid of x (B, C, H, W), channels last unless x is contiguous.
Tensor empty_on_grid(const Tensor& x, int64_t c) {
  const int64_t b = x.size(0), h = x.size(2), w = x.size(3), sizes[] = {b, c, h, w}, last[] = {c * h * w, 1, w * c, c};
  return x.is_contiguous() ? empty({b, c, h, w}, x.scalar_type()) : empty_strided(sizes, last, 4, x.scalar_type());
}

// A masked convolution as vqfast/ops/masked_conv/op.py defines it: its result, and the sums where they are kept. x is
// contiguous or channels last, extra and residual alike, the others contiguous. Taps that reach the grid from no
// position are left out.
std::tuple<Tensor, Tensor> masked_conv2d(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& extra,
    const std::optional<Tensor>& residual, int64_t taps, const std::vector<int64_t>& anchor,
    const std::vector<int64_t>& dilation, int64_t activation) {
  const int64_t height = x.size(2), width = x.size(3), columns = weight.size(3), channels = weight.size(0);
  std::vector<int64_t> tap, dy, dx;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t y = (t / columns - anchor[0]) * dilation[0], x = (t % columns - anchor[1]) * dilation[1];
    if (std::abs(y) < height && std::abs(x) < width) tap.push_back(t), dy.push_back(y), dx.push_back(x);
  }
  const bool gated = Activation(activation) == Activation::gate;
  std::optional<Tensor> kept;
  if (gated || (Activation(activation) == Activation::relu && residual)) kept = empty_on_grid(x, channels);
  Tensor result = empty_on_grid(x, gated ? channels / 2 : channels);
  masked_conv(x, weight, bias, extra, residual, result, kept, tap, dy, dx, activation);
  return {std::move(result), kept ? std::move(*kept) : empty({0}, x.scalar_type())};
}

// The gradients of the weight, at its taps only, and of the bias, given that of the sums.
void masked_conv_weight_gradient(Tensor grad, Tensor x, Tensor grad_weight, Tensor grad_bias, std::vector<int64_t> taps,
                                 std::vector<int64_t> dy, std::vector<int64_t> dx) {
  MaskedConvProblem p = masked_conv_of(x, std::nullopt, std::nullopt, grad, std::nullopt);
  set_weight(p, grad_weight, taps, dy, dx);
  p.bias = grad_bias.mutable_data_ptr();
  p.of_weight = true;
  compute(p, compute_weight_gradient);
}

// result = tanh(a) * sigmoid(b), where a and b are the halves of the channels of x + extra. Or, given grad, the
// gradient of that: the gradient of x.
void gate(Tensor x, std::optional<Tensor> extra, std::optional<Tensor> grad, Tensor result) {
  const MaskedConvKernel& kernel = best_kernels().masked_conv;
  MaskedConvProblem p = masked_conv_of(x, extra, grad, result, std::nullopt);
  p.out_channels = p.in_channels;
  p.epilogue = grad ? Epilogue::gate_gradient : Epilogue::gate;
  const int64_t threads = threads_for(double(x.numel()) * 16);
  kernel.plan(p, threads);
  for_parts(threads, kernel.blocks(p), [&](int64_t, Span blocks) { kernel.gate(p, blocks); });
}

}  // namespace

void add_masked_conv(const Ops& ops) {
  ops.add<masked_conv>(
      "masked_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? extra, Tensor? residual, Tensor(a!) result,"
      " Tensor(b!)? kept, int[] taps, int[] dy, int[] dx, int activation) -> ()");
  ops.add<masked_conv2d>(
      "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? extra, Tensor? residual, int taps, int[] anchor,"
      " int[] dilation, int activation) -> (Tensor, Tensor)");
  ops.add<masked_conv_weight_gradient>(
      "masked_conv_weight_gradient(Tensor grad, Tensor x, Tensor(a!) grad_weight, Tensor(b!) grad_bias, int[] taps,"
      " int[] dy, int[] dx) -> ()");
  ops.add<gate>("gate(Tensor x, Tensor? extra, Tensor? grad, Tensor(a!) result) -> ()");
}

}  // namespace vqfast
