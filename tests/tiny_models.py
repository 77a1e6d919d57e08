"""Random models of a fraction of a megabyte, saved as the real ones are, so that the real loading and running code can be tried without downloads."""
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from film.text import quietly

WORDS = ("a an the photo of picture image is on in at with and car person road tree dark bright infrared visible man street night light two one three "
         "resolution x red green building sky what this word").split()


def _word_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    "Words of a small vocabulary, each with the space before it, and `special` tokens without."
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *special, *(f"▁{word}" for word in WORDS), *(f"▁{chr(c)}" for c in range(33, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(vocabulary))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", padding_side="left",
                                   **(dict(extra_special_tokens={"image_token": "<image>"}) if len(special) > 1 else {}))


@quietly()
def save_blip2(folder: Path, seed: int = 0) -> Path:
    "BLIP-2 with an OPT language model, all of it tiny."
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, Blip2QFormerConfig, Blip2VisionConfig, BlipImageProcessorPil, OPTConfig
    torch.manual_seed(seed)
    tokenizer = _word_tokenizer("<image>")
    config = Blip2Config(
        vision_config=Blip2VisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14).to_dict(),
        qformer_config=Blip2QFormerConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, encoder_hidden_size=16, vocab_size=100).to_dict(),
        text_config=OPTConfig(hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(tokenizer),
                              max_position_embeddings=128, bos_token_id=0, pad_token_id=1, eos_token_id=2).to_dict(),
        num_query_tokens=4, image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_text_hidden_size=8)
    Blip2ForConditionalGeneration(config).eval().save_pretrained(folder)
    Blip2Processor(BlipImageProcessorPil(size=dict(height=28, width=28)), tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


@quietly()
def save_qformer(folder: Path, seed: int = 0) -> Path:
    "The image-text-matching BLIP-2 whose text branch encodes: with projection, vision part and the Q-Former in one folder."
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig
    torch.manual_seed(seed)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(chr(c) for c in range(33, 127)), *(f"##{chr(c)}" for c in range(33, 127))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.save_pretrained(folder)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14).to_dict(),
        qformer_config=Blip2QFormerConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, encoder_hidden_size=16,
                                          vocab_size=len(tokenizer), max_position_embeddings=64, use_qformer_text_input=True).to_dict(),
        num_query_tokens=4, image_text_hidden_size=8)
    Blip2ForImageTextRetrieval(config).eval().save_pretrained(folder)
    return folder


@quietly()
def save_florence2(folder: Path, says: str = "", seed: int = 0) -> Path:
    "Florence-2 at 64 pixels, with its thousand places as tokens; taught to answer `says`, whatever it sees."
    from transformers import BartConfig, CLIPImageProcessorPil, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor, Florence2VisionConfig
    torch.manual_seed(seed)
    places = [f"<loc_{i}>" for i in range(1000)]
    tokenizer = _word_tokenizer("<image>", *places)
    vision = Florence2VisionConfig(depths=(1, 1, 1, 1), embed_dim=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), num_groups=(1, 1, 2, 2), window_size=4, projection_dim=16)
    text = BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
                      vocab_size=len(tokenizer), max_position_embeddings=256, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
                      forced_bos_token_id=0, forced_eos_token_id=2)
    config = Florence2Config(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    model = Florence2ForConditionalGeneration(config).eval()
    kinds = ("od", "ocr", "pure_text", "bboxes", "polygons", "phrase_grounding", "description_with_bboxes", "description_with_polygons", "description_with_bboxes_or_polygons")
    images = CLIPImageProcessorPil(size=dict(height=64, width=64), crop_size=dict(height=64, width=64), do_center_crop=False, image_seq_length=(64 // 32) ** 2 + 1)
    processor = Florence2Processor(images, tokenizer, post_processor_config={kind: {} for kind in kinds})
    processor.save_pretrained(folder)
    if says:
        labels = torch.tensor([[0, *tokenizer(says, add_special_tokens=False)["input_ids"], 2]])
        inputs = processor(images=[torch.zeros(3, 64, 64)], text=["<DENSE_REGION_CAPTION>"], return_tensors="pt")
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(120):
            loss = model(**inputs, labels=labels).loss
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            if loss < 0.02: break
    model.save_pretrained(folder)
    return folder


def tiny_sam(seed: int = 0):
    "Segment Anything at 64 pixels: the package's own classes, 0.2 million parameters."
    from functools import partial
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    torch.manual_seed(seed)
    return Sam(
        image_encoder=ImageEncoderViT(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, out_chans=32, qkv_bias=True, use_rel_pos=True,
                                      window_size=2, global_attn_indexes=(1,), norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)),
        prompt_encoder=PromptEncoder(embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
        mask_decoder=MaskDecoder(num_multimask_outputs=3, transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2), transformer_dim=32,
                                 iou_head_depth=2, iou_head_hidden_dim=32),
        pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375]).eval()
