"""Visual geo-localization: train and use encoders that find where a photo was taken."""
