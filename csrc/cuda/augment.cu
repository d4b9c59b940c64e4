// Views on a CUDA device as a PyTorch op. All arithmetic is in augment.h, which a host test runs too; here views are
// mapped to blocks, and a view's memory is shared memory or, for large views, a part of a workspace. Nothing waits for
// the device.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "augment_arguments.h"
#include "cuda/augment.h"
#include "cuda/stream.h"

namespace bissl_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

constexpr int kBlocksPerMultiprocessor = 2;

struct ViewTeam {
  template <class Work>
  HOST_DEVICE void lanes([[maybe_unused]] const Work& work) const {
#ifdef __CUDA_ARCH__
    work(static_cast<int>(threadIdx.x));
    __syncthreads();
#endif
  }

  template <int kCount, class Read, class Write>
  HOST_DEVICE void exchange([[maybe_unused]] const Read& read, [[maybe_unused]] const Write& write) const {
#ifdef __CUDA_ARCH__
    float kept[kCount];
    read(static_cast<int>(threadIdx.x), kept);
    __syncthreads();
    write(static_cast<int>(threadIdx.x), kept);
    __syncthreads();
#endif
  }
};

// A view's memory is the block's shared memory, or its part of a workspace. Blocks take turns where there are fewer of
// them than views.
template <bool kShared, class T>
__global__ void __launch_bounds__(kViewTeam, kBlocksPerMultiprocessor)
    render(const __grid_constant__ ViewJob<T> job, float* workspace) {
  extern __shared__ float4 shared[];
  const auto run = [&](float* memory) {
    for (int64_t k = blockIdx.x; k < job.n; k += gridDim.x) job(ViewTeam{}, memory, k);
  };
  if constexpr (kShared) {
    run(reinterpret_cast<float*>(shared));
  } else {
    run(workspace + blockIdx.x * job.layout.floats);
  }
}

int64_t attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

struct Placement {
  ViewLayout layout;
  bool shared;
};

// Shared memory for two views on a multiprocessor if strips of some length allow it, else for one, else a workspace.
Placement place(int64_t size, const ImageArray& images, bool cubic, int device) {
  const auto within = [&](int64_t bytes) { return layout_within(bytes, size, images.height, images.width, cubic); };
  const int64_t reserved = attribute(cudaDevAttrReservedSharedMemoryPerBlock, device);
  const int64_t part = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) / kBlocksPerMultiprocessor;
  const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  for (const int64_t bytes : {std::min(part - reserved, most), most}) {
    if (const ViewLayout layout = within(bytes); layout.bytes() <= bytes) return {layout, true};
  }
  return {within(INT64_MAX), false};
}

template <class T>
void launch(ViewJob<T> job, const Tensor& out, int device) {
  const Placement placed = place(job.recipe.size, job.images, job.recipe.cubic, device);
  job.layout = placed.layout;
  const cudaStream_t stream = current_stream(device);
  const int64_t at_once = kBlocksPerMultiprocessor * attribute(cudaDevAttrMultiProcessorCount, device);
  const int64_t blocks = std::min<int64_t>(job.n, placed.shared ? INT32_MAX : at_once);
  if (placed.shared) {
    const auto bytes = static_cast<int>(job.layout.bytes());
    const auto kernel = render<true, T>;
    // Of the device, not of this view: another thread may launch a larger one in between.
    const auto most = static_cast<int>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
    kernel<<<static_cast<unsigned>(blocks), kViewTeam, static_cast<size_t>(bytes), stream>>>(job, nullptr);
  } else {
    const Tensor workspace = torch::stable::new_empty(out, {blocks * job.layout.floats}, ScalarType::Float);
    render<false, T><<<static_cast<unsigned>(blocks), kViewTeam, 0, stream>>>(job, data<float>(workspace));
  }
  check(cudaGetLastError());
}

// The images as the device sees them: its own, or the host's if they are pinned.
const uint8_t* seen_by_device(const ImageArray& images) {
  if (images.count == 0) return images.pixels;
  cudaPointerAttributes found{};
  // Where a GPU reads pageable memory, too, that has an address; but nobody would keep it until the kernel is done.
  const bool known = cudaPointerGetAttributes(&found, images.pixels) == cudaSuccess &&
                     found.type != cudaMemoryTypeUnregistered && found.devicePointer != nullptr;
  if (!known) cudaGetLastError();  // or the next check would meet it
  STD_TORCH_CHECK(known, "images must lie on the device or in pinned host memory");
  return static_cast<const uint8_t*>(found.devicePointer);
}

// PyTorch hands on pinned memory as soon as it is freed, unless one of its own copies still reads it: so one pixel is
// copied after the kernel, and the images stay until then.
void keep_until_read(const Tensor& images, const Device& device) {
  Tensor pixel = images;
  for (int axis = 0; axis < 3; ++axis) pixel = torch::stable::narrow(pixel, axis, 0, 1);
  const std::array<int64_t, 4> shape{1, 1, 1, kChannels};
  Tensor copy = torch::stable::empty(shape, ScalarType::Byte, std::nullopt, device);
  torch::stable::copy_(copy, pixel, true);
}

// The table in one block of memory on the device; PyTorch's allocators keep both ends until the copy is done.
Tensor copied_to_device(const ViewTable& table, const Device& device) {
  const int64_t samples = table.n * sizeof(int64_t), integers = table.n * sizeof(ViewIntegers),
                numbers = table.n * sizeof(ViewNumbers), bytes = samples + integers + numbers;
  const std::array<int64_t, 1> shape{bytes};
  const Tensor pinned = torch::stable::empty(shape, ScalarType::Byte, std::nullopt,
                                             Device(torch::headeronly::DeviceType::CPU), true);
  auto* start = data<uint8_t>(pinned);
  std::memcpy(start, table.samples, samples);
  std::memcpy(start + samples, table.integers, integers);
  std::memcpy(start + samples + integers, table.numbers, numbers);
  Tensor copy = torch::stable::empty(shape, ScalarType::Byte, std::nullopt, device);
  torch::stable::copy_(copy, pinned, true);
  return copy;
}

// Where the views go: to the images' device, or to the table's if the images lie in pinned host memory.
Tensor render_views_op(const Tensor& images, const Tensor& samples, const Tensor& integers, const Tensor& numbers,
                       const Tensor& channels, int64_t size, bool cubic, bool box_blur, double threshold, bool bfloat16) {
  ImageArray array = images_of(images);
  const ViewRecipe recipe = recipe_of(size, cubic, box_blur, threshold, channels);
  STD_TORCH_CHECK(size <= kLargestView, "the CUDA kernel renders views of up to ", kLargestView, " pixels");
  STD_TORCH_CHECK(array.height <= UINT16_MAX && array.width <= UINT16_MAX,
                  "the CUDA kernel reads images of up to 65535 pixels a side");
  ViewTable table = table_of(samples, integers, numbers);
  if (!table.on_host && images.is_cuda()) check_one_device(images, samples);
  const Device device = images.is_cuda() ? images.device() : samples.device();
  const torch::stable::accelerator::DeviceGuard guard(device.index());
  check(cudaSetDevice(device.index()));  // the guard set it in PyTorch's CUDA runtime, this one is ours
  const std::array<int64_t, 4> shape{table.n, kChannels, size, size};
  const Tensor out = torch::stable::empty(shape, bfloat16 ? ScalarType::BFloat16 : ScalarType::Float, std::nullopt,
                                          device, std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (table.n == 0) return out;
  array.pixels = seen_by_device(array);
  std::optional<Tensor> copy;
  if (table.on_host) {
    check_rows(array, table);
    copy = copied_to_device(table, device);
    table.samples = data<const int64_t>(*copy);
    table.integers = reinterpret_cast<const ViewIntegers*>(table.samples + table.n);
    table.numbers = reinterpret_cast<const ViewNumbers*>(table.integers + table.n);
  }
  const auto run = [&]<class T>(T* to) {
    launch(ViewJob<T>{array, table.samples, table.integers, table.numbers, table.n, recipe, {}, to}, out, device.index());
  };
  bfloat16 ? run(data<BFloat16>(out)) : run(data<float>(out));
  if (!images.is_cuda() && images.numel() > 0) keep_until_read(images, device);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CUDA, library) { library.impl("render_views", TORCH_BOX(&render_views_op)); }

}  // namespace bissl_fast::cuda
