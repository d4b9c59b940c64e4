// What the CUDA kernel of views computes, in loops on the host, against the CPU kernel.
#include "cuda/augment.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/augment.h"

namespace {

namespace cpu = bissl_fast::cpu;
namespace cuda = bissl_fast::cuda;
using bissl_fast::ViewIntegers;
using bissl_fast::ViewNumbers;

constexpr float kLevel = 1.0f / 255;

int failures = 0;

void expect(bool condition, const std::string& claim, const std::string& where) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s at %s\n", claim.c_str(), where.c_str());
}

// Lanes come in no order, so first to last and last to first must give the same bits.
struct HostTeam {
  bool backwards;

  template <class Work>
  void lanes(const Work& work) const {
    for (int k = 0; k < cuda::kViewTeam; ++k) work(backwards ? cuda::kViewTeam - 1 - k : k);
  }

  template <int kCount, class Read, class Write>
  void exchange(const Read& read, const Write& write) const {
    std::vector<std::array<float, kCount>> kept(cuda::kViewTeam);
    for (auto& values : kept) values.fill(std::numeric_limits<float>::quiet_NaN());
    lanes([&](int lane) { read(lane, kept[lane].data()); });
    lanes([&](int lane) { write(lane, kept[lane].data()); });
  }
};

struct Case {
  int64_t size, height, width;
  int32_t misaligned = 0;  // bytes by which the images begin after a word
  int views = 8;
};

// Images, a table that holds every operation in some order, and a recipe. Buffers are as long as they must be and no
// longer, so that a sanitizer sees every step beyond.
class Scene {
 public:
  Scene(const Case& c, bool cubic, bool box, int seed) : shape_(c), generator_(seed) {
    const int64_t bytes = kImages * c.height * c.width * 3;
    pixels_ = std::make_unique<uint8_t[]>(c.misaligned + bytes);
    for (int64_t k = 0; k < bytes; ++k) pixels_[c.misaligned + k] = static_cast<uint8_t>(whole(0, 255));
    images_ = {pixels_.get() + c.misaligned, kImages, c.height, c.width};
    recipe_ = {c.size, cubic, 0.5f, {1, 2, 3}, {0, 0.5f, -1}, box};
    for (int k = 0; k < c.views; ++k) add_view(k);
  }

  int64_t values_per_view() const { return 3 * shape_.size * shape_.size; }
  int64_t views() const { return static_cast<int64_t>(samples_.size()); }
  ViewIntegers& integers(int k) { return integers_[k]; }

  template <class T>
  std::vector<T> of_cpu() const {
    std::vector<T> out(views() * values_per_view());
    cpu::render_views(images_, samples_.data(), integers_.data(), numbers_.data(), views(), recipe_, out.data());
    return out;
  }

  template <class T>
  std::vector<T> of_team(bool backwards, int32_t strip) const {
    const auto layout = cuda::layout_of(shape_.size, shape_.height, shape_.width, recipe_.cubic, strip);
    std::vector<T> out(views() * values_per_view());
    const cuda::ViewJob<T> job{images_,  samples_.data(), integers_.data(), numbers_.data(), views(),
                               recipe_, layout,          out.data()};
    for (int64_t k = 0; k < views(); ++k) {
      struct alignas(16) Four {
        float values[4];
      };
      const auto memory = std::make_unique<Four[]>((layout.floats + 3) / 4);
      std::memset(static_cast<void*>(memory.get()), 0xff, layout.bytes());  // NaN: what is read unwritten shows
      job(HostTeam{backwards}, memory.get()->values, backwards ? views() - 1 - k : k);
    }
    return out;
  }

 private:
  static constexpr int kImages = 3;

  int whole(int64_t low, int64_t high) { return static_cast<int>(std::uniform_int_distribution<int64_t>(low, high)(generator_)); }
  float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator_); }

  void add_view(int k) {
    const int height = whole(1, shape_.height), width = whole(1, shape_.width);
    ViewIntegers row{whole(0, shape_.height - height), whole(0, shape_.width - width), height, width, k & 1, k == 2 || k == 5,
                     k % 3 == 0, {0, 1, 2, 3}};
    if (k == 0) row = {0, 0, static_cast<int>(shape_.height), static_cast<int>(shape_.width), 1, 0, 0, {3, 2, 1, 0}};
    std::shuffle(row.order, row.order + 4, generator_);
    ViewNumbers numbers{{real(0, 2), real(0, 2), real(0, 3), real(-0.5f, 0.5f)}, k % 4 == 3 ? 0 : real(0.1f, 3)};
    if (k == 4) numbers = {{1, 1, 1, 0}, 2.0f};  // no colours
    if (k == 6) numbers.factors[1] = 1;          // no contrast
    if (k == 7 && shape_.size <= 40) numbers.sigma = 1e5f;  // as wide as the view allows
    samples_.push_back(k == 1 ? kImages - 1 : whole(0, kImages - 1));
    integers_.push_back(row);
    numbers_.push_back(numbers);
  }

  Case shape_;
  std::mt19937 generator_;
  std::unique_ptr<uint8_t[]> pixels_;
  bissl_fast::ImageArray images_{};
  bissl_fast::ViewRecipe recipe_{};
  std::vector<int64_t> samples_;
  std::vector<ViewIntegers> integers_;
  std::vector<ViewNumbers> numbers_;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), sizeof(float) * a.size()) == 0;
}

void expect_close(const std::vector<float>& found, const std::vector<float>& expected, const std::string& where) {
  float worst = 0;
  for (size_t k = 0; k < found.size(); ++k) {
    const float error = std::abs(found[k] - expected[k]) / static_cast<float>(k % 3 + 1);  // by the channel's scale
    worst = std::max(worst, std::isnan(error) ? std::numeric_limits<float>::infinity() : error);
  }
  expect(worst <= kLevel / 100, "views are the CPU kernel's to a hundredth of a level, not " + std::to_string(worst / kLevel), where);
}

bissl_fast::BFloat16 rounded(float value) {
  bissl_fast::BFloat16 out;
  bissl_fast::store(value, &out);
  return out;
}

void check(const Case& c, bool cubic, bool box) {
  const std::string where = std::to_string(c.size) + " px from " + std::to_string(c.height) + " x " + std::to_string(c.width) +
                            (cubic ? " cubic" : " linear") + (box ? " box" : "") + (c.misaligned ? " misaligned" : "");
  const Scene scene(c, cubic, box, static_cast<int>(c.size + c.width));
  const int32_t longest = cuda::most_rows(c.size);
  const auto found = scene.of_team<float>(false, longest);
  expect_close(found, scene.of_cpu<float>(), where);
  expect(same_bits(found, scene.of_team<float>(true, longest)), "the order of lanes changes no bit", where);
  expect(same_bits(found, scene.of_team<float>(false, 1)), "the length of strips changes no bit", where);
  expect(same_bits(found, scene.of_team<float>(false, (longest + 1) / 2)), "half strips change no bit", where);
  const auto narrow = scene.of_team<bissl_fast::BFloat16>(false, longest);
  bool equal = true;
  for (size_t k = 0; k < found.size(); ++k) equal &= narrow[k] == rounded(found[k]);
  expect(equal, "bfloat16 views are the rounded float32 ones", where);
}

// The last of 110,000 images, whose bytes lie beyond 2^31; the others are pages that nobody touches.
void check_large_set() {
  const bissl_fast::ImageArray few{nullptr, 1, 96, 96}, many{nullptr, 110'000, 96, 96};
  const size_t image = 96 * 96 * 3, bytes = many.count * image;
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return expect(false, "3 GB of addresses can be had", "mmap");
  auto* last = static_cast<uint8_t*>(pages) + (many.count - 1) * image;
  for (size_t k = 0; k < image; ++k) last[k] = static_cast<uint8_t>(k * k % 251);
  const ViewIntegers integers{3, 5, 80, 70, 1, 0, 0, {0, 1, 2, 3}};
  const ViewNumbers numbers{{0.8f, 1.2f, 0.9f, 0.1f}, 0.7f};
  const auto view_of = [&](bissl_fast::ImageArray images, const void* pixels, int64_t sample) {
    images.pixels = static_cast<const uint8_t*>(pixels);
    const auto layout = cuda::layout_of(16, 96, 96, true, 16);
    std::vector<float> out(3 * 16 * 16), memory(layout.floats + 4);
    auto* start = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16);
    const bissl_fast::ViewRecipe recipe{16, true, 0.5f, {1, 1, 1}, {0, 0, 0}};
    const cuda::ViewJob<float> job{images, &sample, &integers, &numbers, 1, recipe, layout, out.data()};
    job(HostTeam{false}, start, 0);
    return out;
  };
  expect(same_bits(view_of(many, pages, many.count - 1), view_of(few, last, 0)), "an image is found beyond 2^31 bytes",
         "110,000 images");
  munmap(pages, bytes);
}

void check_rows_that_fit_no_image() {
  for (int wrong = 0; wrong < 3; ++wrong) {
    Scene scene({9, 20, 20}, true, false, wrong);
    if (wrong == 0) scene.integers(1).left = 20;
    if (wrong == 1) scene.integers(1).height = 0;
    if (wrong == 2) scene.integers(1).order[0] = scene.integers(1).order[1];
    const auto found = scene.of_team<float>(false, 9);
    const auto begin = found.begin() + scene.values_per_view(), end = begin + scene.values_per_view();
    const auto is_nan = [](float value) { return std::isnan(value); };
    expect(std::all_of(begin, end, is_nan), "a row that fits no image gives NaN", std::to_string(wrong));
    expect(std::none_of(found.begin(), begin, is_nan) && std::none_of(end, found.end(), is_nan),
           "and its neighbours are whole", std::to_string(wrong));
  }
}

// Blocks with a part of a workspace each: every part must begin at 16 bytes, as shared memory does.
void check_workspace() {
  for (int64_t size = 1; size <= 1024; ++size) {
    const auto layout = cuda::layout_within(std::numeric_limits<int64_t>::max(), size, 56, 57, size % 2 == 0);
    expect(layout.bytes() % 16 == 0, "the memory of the next view begins at 16 bytes", std::to_string(size) + " px");
  }
}

// The shared memory of an H100: 228 KiB on a multiprocessor, 1 KiB of them reserved per block, 227 KiB for one block.
void check_memory() {
  const int64_t half = 114 * 1024 - 1024, whole = 227 * 1024;
  for (const int64_t image : {96, 112, 128}) {
    const auto layout = cuda::layout_within(half, 96, image, image, true);
    expect(layout.bytes() <= half && layout.strip >= 2, "two views of 96 pixels share a multiprocessor", std::to_string(image));
  }
  expect(cuda::layout_within(whole, 128, 160, 160, true).bytes() <= whole, "a view of 128 pixels fits", "160");
  expect(cuda::layout_within(whole, 224, 256, 256, true).bytes() > whole, "a view of 224 pixels does not", "256");
}

}  // namespace

int main() {
  const Case cases[] = {{1, 5, 7},    {1, 1, 1},    {2, 300, 8},      {3, 40, 300}, {17, 20, 20},    {17, 31, 73},
                        {24, 24, 24}, {33, 16, 12}, {96, 112, 112, 0, 7},   {96, 50, 51}, {24, 28, 28, 1}, {40, 3, 4},
                        {8, 600, 4},  {100, 9, 9},  {131, 144, 140, 0, 2}, {1024, 64, 48, 0, 1}};
  for (const Case& c : cases) {
    for (const bool box : {false, true}) {
      check(c, true, box);
      if (c.size < 100) check(c, false, box);
    }
  }
  check_rows_that_fit_no_image();
  check_large_set();
  check_workspace();
  check_memory();
  std::printf(failures == 0 ? "all claims hold\n" : "%d claims fail\n", failures);
  return failures == 0 ? 0 : 1;
}
