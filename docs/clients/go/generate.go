// generate TARGET PROMPT MAX_TOKENS: the answer on standard output, as it comes.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "headwise/v1"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: generate TARGET PROMPT MAX_TOKENS")
		os.Exit(2)
	}
	maxTokens, err := strconv.ParseUint(os.Args[3], 10, 32)
	if err == nil {
		err = generate(os.Args[1], os.Args[2], uint32(maxTokens))
	}
	if err != nil {
		refusal := status.Convert(err)
		fmt.Fprintf(os.Stderr, "%s: %s\n", refusal.Code(), refusal.Message())
		os.Exit(1)
	}
}

func generate(target, prompt string, maxTokens uint32) error {
	connection, err := grpc.Dial(target, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer connection.Close()
	// leaving early cancels the call, which frees everything that it holds in the services
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := pb.NewDecodeServiceClient(connection).Generate(ctx, &pb.GenerateRequest{
		Prompt:    &pb.GenerateRequest_Text{Text: prompt},
		MaxTokens: maxTokens,
		IgnoreEos: true,
	})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch part := response.Part.(type) {
		case *pb.GenerateResponse_Delta:
			fmt.Print(part.Delta.Text)
		case *pb.GenerateResponse_Result:
			usage := part.Result.Usage
			fmt.Fprintf(os.Stderr, "%d tokens in, %d out\n", usage.PromptTokens, usage.CompletionTokens)
		}
	}
}
