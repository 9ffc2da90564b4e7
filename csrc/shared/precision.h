// The precision of numbers in memory; what a tensor's dtype becomes on its way to a kernel.
#pragma once

namespace vqfast {

enum class Precision { f32, f64, bf16, f16 };

}  // namespace vqfast
