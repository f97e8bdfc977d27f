"""Where the time of a video language model goes, with and without pruning.

    python -m bench.models                          all models; writes bench/results/DEVICE_models.json, .md and .png
    python -m bench.models --models llava_onevision --seconds 60 --out FILE.json
                                                    one model, within a time limit; adds to what FILE.json holds
    python -m bench.models --draw FILE.json         .md and .png again, from what runs wrote (no torch, no GPU)
    python -m bench.models --tiny --device cpu      toy sizes, to see that it works; prints, writes nothing

The models have the configurations of the 7B checkpoints and random weights, which time does not depend on. Paths:
"none" does not prune, "kernels" prunes as `fastvid_ext.enable` does, "reference" does the same with the reference in
plain PyTorch in place of the ops.

How each field of a row is measured; times are medians in milliseconds:

vision_ms     from the start of the forward pass to the language model's, less prune_ms: vision tower, projector,
              scattering of the tokens; and on the pruned paths the saliency.
prune_ms      pruning, behind the vision tower, and putting the prompt together, in front of the language model.
prefill_ms    language model and head over the prompt, for the logits of its last token.
ttft_ms       wall time of the whole pass and the choice of a token, synchronized.
decode_ms     wall time of one further token, synchronized.
peak_bytes    device memory at its highest during the pass, as requested of the allocator, weights included.
kv_bytes      of the key-value cache behind the prompt.
tflops        of the language model over the tokens of one video, as the FastVID paper counts them: all of them, or as
              many as the retention ratio allows.
tokens_after  tokens kept of one video, really.

vision_ms to prefill_ms are by events on the device's stream, so they hold what the GPU waits for Python.
"""
