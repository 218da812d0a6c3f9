// prefill TARGET POLICY LAYER HEAD TOKEN_ID...: pulls a cache, checks every byte of it, and prints one
// head's rows as JSON. It follows docs/wire-format.md and nothing else.

#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>
#include <openssl/evp.h>

#include "headwise/v1/prefill.grpc.pb.h"

namespace {

using google::protobuf::Struct;
using google::protobuf::Value;
using headwise::v1::CacheFrame;

struct Layer {
  std::vector<std::size_t> rows;
  std::map<int, std::string> sections;
};

std::uint32_t Crc32c(const std::string& bytes) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> made{};
    for (std::uint32_t byte = 0; byte < made.size(); ++byte) {
      std::uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ 0x82F63B78u : value >> 1;
      made[byte] = value;
    }
    return made;
  }();
  std::uint32_t value = ~0u;
  for (const unsigned char byte : bytes) value = table[(value ^ byte) & 0xFF] ^ value >> 8;
  return ~value;
}

std::string Hex(const std::string& bytes) {
  std::ostringstream text;
  text << std::hex << std::setfill('0');
  for (const unsigned char byte : bytes) text << std::setw(2) << int{byte};
  return text.str();
}

class Sha256 {
 public:
  Sha256() { EVP_DigestInit_ex(context_, EVP_sha256(), nullptr); }
  ~Sha256() { EVP_MD_CTX_free(context_); }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(const std::string& bytes) {
    EVP_DigestUpdate(context_, bytes.data(), bytes.size());
  }

  std::string HexDigest() {
    std::string digest(32, '\0');
    EVP_DigestFinal_ex(context_, reinterpret_cast<unsigned char*>(digest.data()), nullptr);
    return Hex(digest);
  }

 private:
  EVP_MD_CTX* context_ = EVP_MD_CTX_new();
};

template <typename Integer>
void AppendLittleEndian(Integer value, std::string& to) {
  for (std::size_t byte = 0; byte < sizeof(value); ++byte) {
    to.push_back(static_cast<char>(value >> 8 * byte & 0xFF));
  }
}

Struct ParseJson(const std::string& text) {
  Struct parsed;
  if (!google::protobuf::util::JsonStringToMessage(text, &parsed).ok()) {
    throw std::runtime_error("this is no JSON object");
  }
  return parsed;
}

const Value& Member(const Struct& object, const std::string& name) {
  const auto found = object.fields().find(name);
  if (found == object.fields().end()) throw std::runtime_error("no member " + name);
  return found->second;
}

class CacheReader {
 public:
  void Take(const CacheFrame& frame) {
    if (Crc32c(frame.payload()) != frame.checksum()) throw std::runtime_error("wrong checksum");
    if (frame.kind() == headwise::v1::FRAME_KIND_HEADER) {
      header_ = ParseJson(frame.payload());
      if (Member(header_, "format_version").number_value() != 1) {
        throw std::runtime_error("another format");
      }
      digest_.Update(frame.payload());
    } else if (frame.kind() == headwise::v1::FRAME_KIND_TRAILER) {
      Finish(ParseJson(frame.payload()));
    } else {
      Add(frame);
    }
  }

  bool whole() const { return whole_; }

  // One head's rows, cut out of its layer.
  std::string HeadAsJson(std::size_t layer_index, std::size_t head) const {
    const Layer& layer = layers_.at(layer_index);
    std::size_t first = 0;
    for (std::size_t before = 0; before < head; ++before) first += layer.rows[before];
    const std::size_t rows = layer.rows.at(head), row = RowBytes(layer_index);
    std::ostringstream text;
    text << "{\"positions\": [";
    if (rows) {
      const std::string& positions = layer.sections.at(headwise::v1::FRAME_KIND_POSITIONS);
      for (std::size_t at = first; at < first + rows; ++at) {
        std::int32_t position;
        // the machine this runs on is little-endian too
        std::memcpy(&position, positions.data() + 4 * at, 4);
        text << (at > first ? ", " : "") << position;
      }
    }
    text << "]";
    for (const auto& [name, kind] : {std::pair{"keys", headwise::v1::FRAME_KIND_KEYS},
                                     std::pair{"values", headwise::v1::FRAME_KIND_VALUES}}) {
      const std::string cut =
          rows ? layer.sections.at(kind).substr(first * row, rows * row) : std::string();
      text << ", \"" << name << "\": \"" << Hex(cut) << "\"";
    }
    return text.str() + "}";
  }

 private:
  void Add(const CacheFrame& frame) {
    std::string entry;
    AppendLittleEndian(std::uint32_t{frame.layer()}, entry);
    AppendLittleEndian(static_cast<std::uint32_t>(frame.kind()), entry);
    AppendLittleEndian(std::uint64_t{frame.offset()}, entry);
    AppendLittleEndian(static_cast<std::uint64_t>(frame.payload().size()), entry);
    AppendLittleEndian(std::uint32_t{frame.checksum()}, entry);
    digest_.Update(entry);
    frames_ += 1;
    payload_bytes_ += frame.payload().size();
    if (frame.kind() == headwise::v1::FRAME_KIND_INDEX) {
      Layer& layer = layers_.emplace_back();
      const Struct index = ParseJson(frame.payload());
      for (const Value& rows : Member(index, "rows").list_value().values()) {
        layer.rows.push_back(static_cast<std::size_t>(rows.number_value()));
        rows_ += layer.rows.back();
      }
      return;
    }
    std::string& section = layers_.at(frame.layer()).sections[frame.kind()];
    if (frame.offset() != section.size()) throw std::runtime_error("a gap");
    section += frame.payload();
  }

  void Finish(const Struct& trailer) {
    if (Member(trailer, "frames").number_value() != frames_ ||
        Member(trailer, "payload_bytes").number_value() != payload_bytes_ ||
        Member(trailer, "rows").number_value() != rows_) {
      throw std::runtime_error("trailer: wrong totals");
    }
    if (Member(trailer, "sha256").string_value() != digest_.HexDigest()) {
      throw std::runtime_error("trailer: wrong digest");
    }
    whole_ = true;
  }

  std::size_t RowBytes(std::size_t layer) const {
    const Struct& model =
        Member(Member(header_, "fingerprint").struct_value(), "model").struct_value();
    const std::size_t element = Member(model, "dtype").string_value() == "float32" ? 4 : 2;
    const auto& shapes = Member(header_, "layers").list_value().values();
    const Struct& shape = shapes[static_cast<int>(layer)].struct_value();
    return element * static_cast<std::size_t>(Member(shape, "head_size").number_value());
  }

  Struct header_;
  Sha256 digest_;
  std::vector<Layer> layers_;
  double frames_ = 0, payload_bytes_ = 0, rows_ = 0;
  bool whole_ = false;
};

void Run(int count, char** arguments) {
  const auto channel = grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials());
  const auto stub = headwise::v1::PrefillService::NewStub(channel);
  headwise::v1::PrefillRequest request;
  request.mutable_policy()->set_name(arguments[2]);
  for (int at = 5; at < count; ++at) request.add_token_ids(std::stoul(arguments[at]));

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const auto stream = stub->Prefill(&context, request);
  CacheReader reader;
  headwise::v1::PrefillResponse response;
  while (stream->Read(&response)) {
    if (response.has_frame()) reader.Take(response.frame());
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) throw std::runtime_error(status.error_message());
  if (!reader.whole()) throw std::runtime_error("the stream ended before its trailer");
  std::cout << reader.HeadAsJson(std::stoul(arguments[3]), std::stoul(arguments[4]));
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 6) {
    std::cerr << "usage: prefill TARGET POLICY LAYER HEAD TOKEN_ID...\n";
    return 2;
  }
  try {
    Run(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
