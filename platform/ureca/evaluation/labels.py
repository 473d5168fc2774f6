"""Display names of metrics and captioner variants, in display order."""

METRIC_LABELS = {
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR 1.5 (Java)",
    "cider": "CIDEr / 10",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "attribute_accuracy": "attribute accuracy",
    "uniqueness": "uniqueness",
}
VARIANT_LABELS = {
    "none": "base, no region",
    "box": "base, box as text",
    "tuned_none": "stage 2 without region",
    "tuned_box": "stage 2, box as text",
    "mask_stage1": "stage 1, mask",
    "mask_stage2": "stage 2, mask",
    "mask_longer": "stage 2, trained on",
    "mask_stage3": "stage 3, mask",
    "shipped": "nano as shipped",
}
