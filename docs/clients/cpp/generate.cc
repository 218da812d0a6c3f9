// generate TARGET PROMPT MAX_TOKENS: the answer on standard output, as it comes.

#include <chrono>
#include <iostream>
#include <string>

#include <grpcpp/grpcpp.h>

#include "headwise/v1/decode.grpc.pb.h"

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "usage: generate TARGET PROMPT MAX_TOKENS\n";
    return 2;
  }
  const auto channel = grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials());
  const auto stub = headwise::v1::DecodeService::NewStub(channel);

  headwise::v1::GenerateRequest request;
  request.set_text(arguments[2]);
  request.set_max_tokens(std::stoul(arguments[3]));
  request.set_ignore_eos(true);

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const auto stream = stub->Generate(&context, request);
  headwise::v1::GenerateResponse response;
  while (stream->Read(&response)) {
    if (response.has_delta()) {
      std::cout << response.delta().text() << std::flush;
    } else {
      const auto& usage = response.result().usage();
      std::cerr << usage.prompt_tokens() << " tokens in, " << usage.completion_tokens()
                << " out\n";
    }
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) {
    std::cerr << status.error_code() << ": " << status.error_message() << "\n";
    return 1;
  }
}
