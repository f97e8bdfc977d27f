// Prunes the tokens of a file with a TorchScript module, without Python, and checks the result:
//   prune_file FOLDER [DEVICE]
// FOLDER as write_cases.py makes it; DEVICE is "cuda" unless given. Leaves with 0 where the result is right, with 1
// where it is not or an error came, and with 77 where DEVICE is "cuda" and there is none.

#include <torch/cuda.h>
#include <torch/script.h>
#include <torch/serialize.h>
#include <torch/version.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kSkipped = 77;

c10::Dict<c10::IValue, c10::IValue> read_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::pickle_load(bytes).toGenericDict();
}

int run(const std::string& folder, const std::string& device_name) {
  const torch::Device device(device_name);
  // Loading fails where an op of the module is not registered.
  torch::jit::Module module = torch::jit::load(folder + "/module.pt");
  const auto tensors = read_tensors(folder + "/tensors.pt");
  const auto tensor = [&](const char* name) { return tensors.at(name).toTensor(); };
  std::cout << "torch " << TORCH_VERSION << ", tokens " << tensor("tokens").sizes() << std::endl;
  if (device.is_cuda() && !torch::cuda::is_available()) {
    std::cout << "the module and its op are loaded, but there is no CUDA device to run it on" << std::endl;
    return kSkipped;
  }

  torch::InferenceMode guard;
  const auto result =
      module.forward({tensor("tokens").to(device), tensor("saliency").to(device), tensor("frame_features").to(device)})
          .toTuple();
  const torch::Tensor rows = result->elements().at(0).toTensor().cpu();
  const torch::Tensor indices = result->elements().at(1).toTensor().cpu();
  const torch::Tensor frame_counts = result->elements().at(2).toTensor().cpu();

  const torch::Tensor kept_index = tensor("kept_index");
  const int64_t frames = tensor("tokens").size(0), tokens_per_frame = tensor("tokens").size(1);
  const torch::Tensor kept_per_frame = kept_index.div(tokens_per_frame, "floor").bincount({}, frames);
  bool right = true;
  const auto require = [&](bool holds, const char* what) {
    if (!holds) std::cout << what << " differ from the golden result" << std::endl;
    right &= holds;
  };
  require(torch::equal(indices, kept_index), "indices");
  require(torch::equal(frame_counts.to(torch::kLong), kept_per_frame), "frame counts");
  require(rows.sizes() == tensor("kept_tokens").sizes() && torch::allclose(rows, tensor("kept_tokens"), 1e-5, 1e-6),
          "tokens");
  if (right) std::cout << "kept " << rows.size(0) << " tokens on " << device << ", as they should be" << std::endl;
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) {
    std::cerr << "usage: prune_file FOLDER [DEVICE]" << std::endl;
    return 1;
  }
  try {
    return run(argv[1], argc == 3 ? argv[2] : "cuda");
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
