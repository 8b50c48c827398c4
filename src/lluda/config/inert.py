"""Keys of a ``config.json`` that say nothing about the forward pass, in any section.

Compared with transformers 5.23 by ``tests/config/test_inert.py``: every key that its base classes write is here or is
read. What a key with a meaning of its own says is read by the component's ``config_*.py``; a key in neither place is
refused by `lluda.config.reader.ConfigReader.refuse_unread`, since it may change the maths.
"""

from __future__ import annotations

# Written by transformers' base class for every model, 4.x and 5.x: names, tasks, what is returned, how it is run.
_BASE_CLASS = """
    add_cross_attention architectures attn_implementation chunk_size_feed_forward cross_attention_hidden_size dtype
    experts_implementation finetuning_task gradient_checkpointing id2label is_decoder is_encoder_decoder label2id
    loss_type model_type num_labels output_attentions output_hidden_states problem_type return_dict
    task_specific_params tf_legacy_loss tie_encoder_decoder tie_last_hidden_states tokenizer_class torch_dtype
    torchscript transformers.js_config transformers_version use_bfloat16 use_cache
"""
# Special tokens, which the model's own readers take where they matter.
_TOKEN_IDS = "bos_token_id decoder_start_token_id eos_token_id pad_token_id prefix sep_token_id"
# Settings of text generation that transformers 4 wrote here and transformers 5 drops when it reads them.
_GENERATION = """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    min_length no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
"""
# What matters while training alone.
_TRAINING = """
    dropout initializer_range output_router_logits router_aux_loss_coef router_jitter_noise router_z_loss_coef
    use_gradient_checkpointing use_reentrant
"""
# How the model classes split their work: the same numbers come out.
_EXECUTION = """
    ep_size fused_attn fused_mlp pretraining_tp use_flash_attention use_flash_attention_2 use_flash_attn
    use_fused_kernels use_liger_kernel use_memory_efficient_attention use_sdpa
"""
# Left behind by training and serving tools.
_TOOLS = """
    base_model_name_or_path is_llama_config max_model_len max_seq_length model_max_length model_name rope_interleaved
    sample_packing train_on_inputs vocab_padding
"""
INERT_KEYS = frozenset(" ".join((_BASE_CLASS, _TOKEN_IDS, _GENERATION, _TRAINING, _EXECUTION, _TOOLS)).split())

# An underscore marks what a config object notes for itself (_name_or_path, _attn_implementation_autoset, …).
_INERT_PREFIXES = ("_", "axolotl_", "llamafactory_", "mergekit_", "neftune_", "trl_", "unsloth_")
_INERT_SUFFIXES = ("_dropout", "_dropout_prob", "_pdrop")


def is_inert(key: str) -> bool:
    """Whether ``key`` has no influence on what a model computes."""
    return key in INERT_KEYS or key.startswith(_INERT_PREFIXES) or key.endswith(_INERT_SUFFIXES)
